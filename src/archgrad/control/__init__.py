"""Control: systems, iLQR and NNiLQR."""
