# PASCAL VOC 2012, train_aug, from image labels. Make the label file and check the
# folder with: python tools/prepare_data.py voc data/VOCdevkit/VOC2012
data_root = 'data/VOCdevkit/VOC2012'
num_classes = 21

# Names as CLIP knows them, and what usually surrounds the objects (CLIP-ES).
class_names = [
    'aeroplane', 'bicycle', 'bird avian', 'boat', 'bottle', 'bus', 'car', 'cat',
    'chair seat', 'cow', 'diningtable', 'dog', 'horse', 'motorbike',
    'person with clothes,people,human', 'pottedplant', 'sheep', 'sofa', 'train',
    'tvmonitor screen',
]  # fmt: skip
background_words = [
    'ground', 'land', 'grass', 'tree', 'building', 'wall', 'sky', 'lake', 'water',
    'river', 'sea', 'railway', 'railroad', 'keyboard', 'helmet', 'cloud', 'house',
    'mountain', 'ocean', 'road', 'rock', 'street', 'valley', 'bridge', 'sign',
]  # fmt: skip

dataset = dict(
    type='mmwsss.ImageLabelDataset',
    data_root=data_root,
    image_labels='image_labels.json',
    data_prefix=dict(img_path='JPEGImages', seg_map_path='SegmentationClass'),
)
train_list = 'ImageSets/Segmentation/train_aug.txt'
train_eval_list = 'ImageSets/Segmentation/train.txt'
val_list = 'ImageSets/Segmentation/val.txt'
