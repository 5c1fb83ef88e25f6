"""`vmagentctl bundle`: what somebody far away needs to help, in one archive without secrets."""
