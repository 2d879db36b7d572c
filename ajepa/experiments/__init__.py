"""The tables of spec 10: settings, one trial (a pretraining and its probes), results as JSON, and tables from them."""
