"""The worker's own decisions in virtual time: a simulated Kafka, faults as data, and what must hold whatever happens.

Pure: no clock, thread or client; randomness is handed in. `docs/simulation.md` says what is simulated and how to run a
seed again.
"""
