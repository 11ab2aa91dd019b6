"""Health profiles, and the daily targets that follow from them."""
