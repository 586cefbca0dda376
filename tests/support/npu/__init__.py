"""What is known of torch_npu without hardware: facts read out of its wheel, which cannot be imported without CANN, and
a stand-in module that keeps to them.
"""
