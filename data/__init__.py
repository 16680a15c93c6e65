"""The data: what reads and writes it, and a folder for each set."""
