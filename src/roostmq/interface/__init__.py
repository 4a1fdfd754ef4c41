"""What people touch: command line, HTTP, logs, metrics."""
