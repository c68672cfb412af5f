"""What travels: every record on every topic, as values. No I/O, and nothing else of Tidegate is imported here.

headers    the two headers of a record that carries items    items         the identity of an item
results    answers as users read them                        answers       what the cloud says of an escalated record
ledger     outcomes and marks                                dead_letters  what was decided about dead letters
positions  where producers and forwarders stand              control       the cloud's credit, who holds a slot
aggregates event-time windows                                topics        names, partitions, retention
flows      what lies in each topic, and whose it is          wire          their JSON, and what is published
errors     the root of the error tree
"""
