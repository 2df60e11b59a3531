from .mobile import PROXYLESS as PROXYLESS, UNAS as UNAS, Widths as Widths
from .nasbench201 import NASBench201 as NASBench201, nasbench201_operation as nasbench201_operation
from .operations import operation as operation
