"""The paper's comparisons on public data: trials, what runs them, and what is written of them.

`data` makes the data sets, `definitions` names the trials of every table and figure, `engine` runs
those that are missing, and `report` writes what came out.
"""
