from .charts.svg import standalone_svg as standalone_svg
from .graphs.cells import draw_cell as draw_cell
from .notebook import NotebookDisplay as NotebookDisplay
