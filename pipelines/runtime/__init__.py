"""The shells that both tiers share: they obey what the pure cores decide.

stage      consume, process, produce and commit in one transaction on one cluster
forwarder  carry records and positions from one cluster to another, exactly once
process    signals, the parent's pipe, logging and exit codes of a worker process
"""
