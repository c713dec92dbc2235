"""Drivers: one for each table or figure."""
