from .mobile import PROXYLESS as PROXYLESS
from .mobile import UNAS as UNAS
from .mobile import Widths as Widths
from .nasbench201 import NASBench201 as NASBench201
from .nasbench201 import nasbench201_operation as nasbench201_operation
from .operations import operation as operation
