"""Where data is finished: the cloud's workers. They know the edge only through `schemas` and topics.

commands   `tidegate cloud|aggregate`: build the objects of a worker process and run them
inference  escalated items in, the cloud's answers out
credit     the cloud's heartbeat to its sites
aggregate  settled results in, event-time windows out
training   `tidegate train`: the shipped models anew (needs the `train` extra)
"""
