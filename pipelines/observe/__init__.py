"""What can be seen of a pipeline from outside.

audit   the account of every item, right while the pipeline runs
lag     how far every group is behind, in seconds, and why
"""
