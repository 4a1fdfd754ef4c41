"""The only place with tasks: what runs for as long as a broker runs."""
