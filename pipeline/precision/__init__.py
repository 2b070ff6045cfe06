"""What makes an fp32 graph less precise: fp16 and bf16, int8, the repair of what a gate refused."""
