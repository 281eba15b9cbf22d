"""`safehold drill`: a real outage, with and without protection."""
