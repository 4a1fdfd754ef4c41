"""What survives a crash: the harness looks at a broker through its sockets and its process only."""
