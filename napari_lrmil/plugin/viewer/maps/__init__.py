"""Maps of attention and evidence: their layers, arrangement, colours and captions."""
