"""What lies on disk: data sets of any format as records, and the files of their media. Needs no torch."""
