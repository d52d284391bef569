"""Submissions: the type of a job that is to be made, and the one way into Postgres and onto the queue."""
