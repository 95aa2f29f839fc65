"""How trained networks are tested: label maps, the confusion matrix, the server's archive."""
