"""Congestion control: what a receiver's feedback says, and what may be sent for it."""
