"""An export for every cell of a grid, and the choice among them.

grid            what is exported: options of all cells, and axes of values
run             the whole sweep: what is not made yet is made, what is made is kept
cell_key        a hash of everything that decides a cell: what has the same one is kept
cell_process    starts cells and listens to them, each in a process of its own
cell_worker     what runs in that process
table           sweep.json and sweep.log
results         the rows of sweep.json -> what was measured of each cell, and the Pareto front
plots, page     report.html and report.md
advise          which cell to deploy
"""
