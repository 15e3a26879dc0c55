"""What a version directory holds, read without TensorFlow: is it whole, and what does its graph say?"""
