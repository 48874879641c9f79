"""Files of an export: a directory that appears complete or not at all, and its manifest.

`lock.py` and `child.py` have what the processes of this project share.
"""
