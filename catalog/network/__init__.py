"""What everything that leaves this machine has in common: who asks, how long it waits, where it may go."""
