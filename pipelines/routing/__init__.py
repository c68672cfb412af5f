"""Signals in, route out: one protocol, one file a policy. Pure: no client library, no clock, no randomness.

base     the protocol, and what a policy is shown and says        signals   whether the cloud can be reached
find     a policy by its name, with its options checked           edge_only, cloud_only, threshold
"""
