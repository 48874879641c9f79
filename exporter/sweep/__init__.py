"""Make one export for each cell of a grid, and choose the cell to deploy.

grid            the grid: options of all cells, and axes of values
run             the whole sweep: keeps finished cells, makes the others
cell_key        a hash of everything that decides a cell; a cell with a known key is kept
cell_process    starts each cell in a separate process and reads its messages
cell_worker     the code that runs in that process
table           sweep.json and sweep.log
results         reads the rows of sweep.json as measured cells; finds the Pareto front
plots, page     report.html and report.md
advise          chooses the cell to deploy
"""
