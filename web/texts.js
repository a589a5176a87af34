// What the panel says, in the language of the page.
import { app } from "../../scripts/app.js"

const TEXTS = {
    en: {
        look: "look at every word",
        title: "Every word",
        close: "Close",
        picture: "The picture and the masks that are switched on. Point at it, or use the arrow keys, to read scores",
        show: "Show {0}",
        missing: "not found",
        threshold: "Threshold",
        use: "Use this threshold",
        used: "The node has this threshold",
        linked: "The node gets its threshold through a link",
        previous: "Previous image",
        next: "Next image",
        image: "Image {0} of {1}",
        empty: "Run the node to see its masks here",
        gone: "The pictures of this run are gone. Run the node again",
    },
    zh: {
        look: "逐词查看",
        title: "逐词查看",
        close: "关闭",
        picture: "图像与已打开的短语的遮罩。用指针指向图像或按方向键读取分数",
        show: "显示 {0}",
        missing: "未找到",
        threshold: "阈值",
        use: "使用此阈值",
        used: "节点已是此阈值",
        linked: "节点的阈值来自连接",
        previous: "上一张图像",
        next: "下一张图像",
        image: "图像 {0} / {1}",
        empty: "运行节点后在此查看其遮罩",
        gone: "本次运行的图像已不存在。请重新运行节点",
    },
    ja: {
        look: "言葉ごとに見る",
        title: "言葉ごとに見る",
        close: "閉じる",
        picture: "画像と、オンにしたマスク。ポインターを重ねるか矢印キーでスコアを読みます",
        show: "{0} を表示",
        missing: "見つかりません",
        threshold: "しきい値",
        use: "このしきい値を使う",
        used: "ノードはこのしきい値です",
        linked: "ノードのしきい値はリンクから来ています",
        previous: "前の画像",
        next: "次の画像",
        image: "画像 {0} / {1}",
        empty: "ノードを実行すると、ここにマスクが表示されます",
        gone: "この実行の画像はもうありません。ノードをもう一度実行してください",
    },
}

export function text(name, ...values) {
    const language = app.extensionManager?.setting?.get("Comfy.Locale") ?? navigator.language
    const texts = TEXTS[language?.slice(0, 2)] ?? TEXTS.en
    return texts[name].replace(/\{(\d)\}/g, (_, i) => values[i])
}
