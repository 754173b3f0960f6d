//! What the commands say and hear of images as wholes.

pub use crate::carry::{
    CheckedImage, CheckedPlatform, Event, ExportOrder, ExportPlan, ExportedImage, Fate, ImageList,
    InvalidList, MemberInfo, MissingPart, OfflineInfo, Report, SetInfo, WantedInfo, Work,
};
