"""One reader for each format of a data set: records in order, as bytes of JSON."""
