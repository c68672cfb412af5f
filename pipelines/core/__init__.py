"""Pure decisions: no client library, no clock, no thread, no randomness. Events and times in, decisions out.

capture     seqs, epochs and positions     pacing      when a frame is released
ledger      marks, and the audit           ranges      sets of seqs as ranges
settlement  one outcome an escalated item  commits     how far a partition is settled
lanes       what a forwarder sends next    windows     event-time windows
dead_letters  which wait, what a retry is  preview   strangers' bytes, safe to show
lag         how far a group is behind, and why   oldest   since when what waits does
rolling     which of several workers is started anew next
"""
