from .count import Counter as Counter
from .limits import Cost as Cost, Predicts as Predicts
from .memory import measured_peak as measured_peak, predict_memory as predict_memory
from .memory_watch import Allocations as Allocations
from .prediction_error import rank_correlation as rank_correlation
from .surrogate import Surrogate as Surrogate
from .table import CostTable as CostTable, measure_table as measure_table
from .table_column import TableColumn as TableColumn
