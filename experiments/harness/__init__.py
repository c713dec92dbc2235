"""What every driver needs, whatever it trains: command line, folder, record, tables."""
