"""Traffic that is not real: shifts of a data set, and other data sets."""
