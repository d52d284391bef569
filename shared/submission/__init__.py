"""How a job comes into being: what is asked for, and the one way from there into Postgres and onto the queue."""
