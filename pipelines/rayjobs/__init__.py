"""Jobs on Ray: blocks of clips with Ray Data, training with Ray Train."""
