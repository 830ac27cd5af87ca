"""Devices: a table of them, with their power modes and software, and what this machine is."""
