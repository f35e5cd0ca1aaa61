"""What training costs, in closed form: FLOPs, bytes of memory, bytes between ranks. No model is built."""
