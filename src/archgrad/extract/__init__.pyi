from .discretize import Resizable as Resizable
