"""What a program, or a command, needs to talk to the broker: find it, ask it, come to its door."""
