"""The `tidegate` command. Workers are started as child processes; none is imported here."""
