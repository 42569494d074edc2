"""Combinatorial screening of crystal prototypes with ensembles of IRNets.

The application: features, data sets, the campaign pipeline, ranking, export and the command
line. Importing this package loads nothing else; ask for the module that you need.
"""

__version__ = "0.1.0"
