// The words of the viewer, in the language of the front end; English where there is no other.
// In: a locale such as "zh" or "zh-TW". Out: an object of strings and functions that return strings.

const ENGLISH = {
  answer: "Answer",
  empty: "The answer appears here when the workflow runs.",
  copy: "Copy text",
  copied: "Copied",
  copyFailed: "Copying failed",
  open: "Open the image",
  close: "Close",
  previous: "Previous image",
  next: "Next image",
  newTab: "Open in a new tab",
  roles: { user: "Request", system: "Instructions", assistant: "Answer" },
  running: "Running …",
  failed: "The run failed; what was finished stays here.",
  interrupted: "Cancelled; what was finished stays here.",
  unfinished: (name) => `DuoGen Load Document opens it as ${name}.`,
  stop: {
    max_images: "Stopped at the limit of images.",
    max_tokens: "Stopped at the limit of tokens.",
    interrupted: "Interrupted before its end.",
  },
  picture: (number) => `Image ${number}`,
  pictureOf: (number, text) => `Image ${number}: ${text}`,
  seed: (seed) => `seed ${seed}`,
  pending: (number) => `Image ${number} is not drawn yet.`,
  missing: (number) => `Image ${number} is no longer on the server; run the workflow again.`,
  preview: "The image being drawn",
  noWorkflow: "This document holds no workflow",
  noWorkflowDetail: "To go on with it, copy its folder into ComfyUI's input folder and use DuoGen Load Document.",
};

const CHINESE = {
  answer: "回答",
  empty: "工作流运行后，回答会显示在这里。",
  copy: "复制文本",
  copied: "已复制",
  copyFailed: "复制失败",
  open: "打开图片",
  close: "关闭",
  previous: "上一张图片",
  next: "下一张图片",
  newTab: "在新标签页中打开",
  roles: { user: "请求", system: "系统指令", assistant: "回答" },
  running: "运行中……",
  failed: "运行失败；已完成的部分保留在这里。",
  interrupted: "已取消；已完成的部分保留在这里。",
  unfinished: (name) => `可用“DuoGen 加载文档”打开：${name}。`,
  stop: {
    max_images: "已达到图片数量上限，回答到此为止。",
    max_tokens: "已达到词元数量上限，回答到此为止。",
    interrupted: "回答在结束前被中断。",
  },
  picture: (number) => `图片 ${number}`,
  pictureOf: (number, text) => `图片 ${number}：${text}`,
  seed: (seed) => `种子 ${seed}`,
  pending: (number) => `图片 ${number} 尚未绘制。`,
  missing: (number) => `图片 ${number} 已不在服务器上，请重新运行工作流。`,
  preview: "正在绘制的图片",
  noWorkflow: "此文档不含工作流",
  noWorkflowDetail: "若要继续，请将其文件夹复制到 ComfyUI 的 input 文件夹，再使用“DuoGen 加载文档”打开。",
};

export function stringsFor(locale) {
  return String(locale ?? "").toLowerCase().startsWith("zh") ? CHINESE : ENGLISH;
}
