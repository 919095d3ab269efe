"""Caffe: a prototxt and a caffemodel, read and written without Caffe; the way in is `door`."""
