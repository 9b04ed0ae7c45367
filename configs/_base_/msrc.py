# MSRC v2, 16 things, in VOC layout; the image labels were made of the masks.
data_root = '../shared/data/msrc'
weights_root = '../shared/data/weights'
num_classes = 17

dataset = dict(
    type='mmwsss.ImageLabelDataset',
    data_root=data_root,
    image_labels='image_labels.json',
    data_prefix=dict(img_path='JPEGImages', seg_map_path='SegmentationClass'),
)
train_list = 'ImageSets/Segmentation/train.txt'
train_eval_list = train_list
val_list = 'ImageSets/Segmentation/val.txt'
