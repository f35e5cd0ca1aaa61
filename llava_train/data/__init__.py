"""How a record becomes a batch: samples, their media, the index, packs, the order, and what people see of them."""
