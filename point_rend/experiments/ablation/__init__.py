"""Tables 3 and 4 of the paper on any data set: subdivision and choice of training points."""
