"""Between Tidegate and a log: `base` is the interface, `kafka` implements it, `broker` runs the embedded Kafka."""
